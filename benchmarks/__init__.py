"""Speed, as ratios measured in one interleaved run: `scripts/bench`. Nothing here is a test."""
