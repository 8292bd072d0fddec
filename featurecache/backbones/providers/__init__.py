"""One small module per place that networks come from. See `featurecache.backbones.provider` for the seam."""
