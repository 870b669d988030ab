"""What a run recorded, sent on to trackers: a projection of its files, so it can be done at any time and again."""
