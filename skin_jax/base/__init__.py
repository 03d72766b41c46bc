"""Errors, files, command lines, devices: what every room stands on; imports nothing of ours."""
