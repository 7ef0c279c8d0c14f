"""What counts of the code and the libraries that numbers depend on, for `cache.code_digest`."""

# They open, check, count and report; what comes out of a file they do not decide.
COMPUTES_NOTHING = ("cache", "configs", "extract.identity", "extract.video.watchdog")
# They decode and resize; which of the three decoders does depends on the file.
LIBRARIES = frozenset(("torch", "torchcodec", "decord", "av"))
