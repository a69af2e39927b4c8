"""Floor 5: from a site to workers under Parsl, and the wiring of all the rooms below; `api` is what users call.

Imports nothing by itself, since its modules need torch and Parsl.
"""
