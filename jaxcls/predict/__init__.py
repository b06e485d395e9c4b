"""Classifies image files, and searches a folder for the nearest images."""
