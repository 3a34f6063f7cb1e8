"""What the speed claims are measured with: each script answers one question."""
