"""A chat model as a judge: step scores, outcomes, preferences, stored verdicts, human labels."""
