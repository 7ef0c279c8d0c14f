"""Files of detections: predictions, subtitles, timelines in a page, scores of whole videos."""
