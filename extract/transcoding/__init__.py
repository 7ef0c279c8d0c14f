"""Videos written anew: small (proxies), reversed, or both, frame for frame."""
