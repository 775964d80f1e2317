"""The pure core: no torch, ray, boto3, clock or randomness of its own."""
