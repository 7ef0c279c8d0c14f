"""Which file a file is, whatever its name: its digest, remembered in the user's cache folder."""
