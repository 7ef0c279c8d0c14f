"""Small layers that networks share, as timm has them: its import takes longer than a detection."""
