"""What is promised of reliability, put to the test on the user's own machine: `mfmarl selftest`.

`goals` lists the promises; each has a file that tries it. `catalogue` holds the faults that every command must meet.
"""
