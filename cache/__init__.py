"""The activation cache: results of the backbone, stored by what they depend on."""
