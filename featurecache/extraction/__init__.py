"""From a source to features: plan, pipeline, shard jobs, engines."""
