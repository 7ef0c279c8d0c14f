"""Numbers beside mAP: precision and recall, accuracy, bootstrap intervals."""
