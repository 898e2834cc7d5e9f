"""Evaluators: trial to outcome, by training or by a formula. Each has a file of its own and meets others nowhere."""
