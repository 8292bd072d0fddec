"""One module for each library, or kind of file, that networks come from; see `featurecache.backbones.provider`."""
