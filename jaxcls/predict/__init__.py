"""Image files become answers: classes of images, and the nearest images of a folder."""
