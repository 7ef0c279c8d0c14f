"""From annotations and detections to numbers: reading, suppressing, scoring, explaining."""
