"""Complete experiments as YAML, and the one function that turns them into typed objects."""
