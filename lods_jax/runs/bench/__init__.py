"""`lods bench`: methods side by side on the same prompts and seeds.

`suite` reads what is to be compared, `plan` turns it into runs, `execute` makes the runs, `tuning` chooses settings by trials,
`ranking` says what the rows show and `report` writes it down.
"""
