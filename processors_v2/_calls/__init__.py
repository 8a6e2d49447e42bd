"""Every request to the database: path, arguments, how to read the answer. No I/O, no rules.

One function here is one SQL function or view there, under the same name; what it does and raises is said in the
comment on the SQL function. The modules are named as the rooms of the SQL.
"""
