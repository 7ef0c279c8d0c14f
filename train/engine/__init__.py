"""The training run, whatever it trains: session, loop, optimizer, checkpoints, logs."""
