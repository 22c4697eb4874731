"""Three models, a first port of each with the mistakes that ports have, and the port that is right: docs/tutorial.md."""
