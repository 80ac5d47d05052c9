"""Where libraries of others are met: circuit breakers and DI containers, one file for each."""
