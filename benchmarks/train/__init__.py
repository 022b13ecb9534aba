"""The drawings, the small models that learned from them, and what reads their pictures back.

Each `train_…` is a command that makes one of `models`; `evaluate` says how well they draw. What a
faster pipeline does to their pictures is measured in `fidelity`.
"""
