"""The pages that people read: of a run, an evaluation, a stage, the episodes, and the labelling of steps."""
