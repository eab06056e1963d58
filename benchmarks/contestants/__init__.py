"""What is compared: one module each, with ``prepare(case)`` that gives the step to be timed."""
