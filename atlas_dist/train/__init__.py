"""What a rank does with one job: build, step, validate, save."""
