"""All layer removals of a pretrained decoder in one pass: engine, scores, tasks, statistics."""
