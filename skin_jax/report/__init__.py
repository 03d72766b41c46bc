"""Reports for people: results in, files out."""
