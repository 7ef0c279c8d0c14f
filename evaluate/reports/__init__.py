"""Reports of runs and evaluations, as one HTML file and as JSON."""
