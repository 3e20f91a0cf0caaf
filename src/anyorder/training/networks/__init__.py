"""Kinds of networks that can be trained, one a file, found by the file's name."""
