"""Transcoding of videos, frame for frame: small (proxies), reversed, or both."""
