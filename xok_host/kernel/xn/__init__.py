"""XN: stable storage, multiplexed at the level of blocks (thesis chapter 4)."""
