"""A report: runs, studies and images are gathered, and drawn as one HTML page."""
