"""The report of runs as one HTML file: figures, tables and sample problems, with nothing fetched from elsewhere."""
