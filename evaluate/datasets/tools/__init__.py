"""What annotation tools export, a file a tool, each turned into the records of datasets."""
