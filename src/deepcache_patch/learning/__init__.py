"""From full generations to how shallow steps go on: calibration.

`study` looks at generations and learns from them, `calibrated_schedule` is what comes out,
`reached` what that reached, `schedule_file` its JSON, `fingerprint` of which weights it is. `auto`
learns during the first generation, `calibrate` on request and for a goal: `nearest` looks for the
plan that comes nearest to the plain pictures, `trials` runs what is tried. Schedules that need no
calibration are in `schedules`.
"""
