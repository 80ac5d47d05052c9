"""The broker behind one protocol: RabbitMQ for services, memory for tests."""
