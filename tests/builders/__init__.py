"""What several test files build or check with: tiny models, pipelines and files, for all to share.

Every builder gives fresh objects in an equal state. The pipelines that are run one by one are in
`zoo`; nothing here is a test.
"""
