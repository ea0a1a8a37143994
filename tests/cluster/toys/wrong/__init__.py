"""What flytekit lets pass and a cluster refuses."""
