"""The webhook of GitHub, as a policy file has it."""

GITHUB_HOOK = """
[hooks.github]
type = "join('.', ['github', headers.\\"x-github-event\\"])"
source = "body.repository.full_name"
id = 'headers."x-github-delivery"'
signature = "github"
secret_env = "GITHUB_SECRET"
"""
