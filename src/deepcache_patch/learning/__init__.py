"""From full generations to a plan: calibration.

`study` looks at a generation and learns from it, `calibrated_schedule` is what comes out, `reached`
what that reached, `schedule_file` its JSON. `auto` learns during the first
generation, `calibrate` on request and for a goal. Schedules that need no calibration are in
`schedules`.
"""
