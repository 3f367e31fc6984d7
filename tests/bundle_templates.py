"""Chat templates in the manner of those that checkpoints carry: each uses something that LiteRT-LM might render differently."""

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

_ROLE = "{{ '<|' + message['role'] + '|>\n' }}"

TEMPLATES = {
    "string concatenation": "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] + eos_token }}{% endfor %}",
    "line breaks in the template and in its strings": f"""{{% for message in messages %}}
{{% if message['role'] == 'user' %}}
{_ROLE}{{{{ message.content.strip('\n') + eos_token }}}}
{{% else %}}
    {{# {{% isn't a tag #}}
    {{# but a comment's text #}}
    {{{{- message.content | trim }}}}
{{% endif %}}
{{% if loop.last and add_generation_prompt %}}
{{{{ '<|assistant|>' }}}}
{{% endif %}}
{{% endfor %}}
""",
    "bos_token and reassigned messages": """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = 'none' %}
{%- endif %}
{{- '[' + system + ']' }}
{%- for message in messages %}
    {{- '<' ~ message.role ~ '>' ~ message.content | trim ~ '\\n' }}
{%- endfor %}
""",
    "methods of strings": """{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'user' and not (message.content.startswith('<t>') and message.content.endswith('</t>')) %}
        {%- set ns.last = (messages|length - 1) - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- set thought = '' %}
    {%- if '</think>' in content %}
        {%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\n').replace('l', 'L') %}
    {%- endif %}
    {{- '<' + message.role + '>' + (thought if loop.index0 > ns.last else '') + content + '\n' }}
{%- endfor %}
{%- if enable_thinking is defined and enable_thinking is false %}{{ 'quiet' }}{% endif %}""",
    "text or parts": """{% for message in messages %}
{% if message.content is string %}T{{ message.content }}{% else %}{% for p in message.content %}P{{ p.text }}{% endfor %}{% endif %}
{% endfor %}""",
    "generation": "{% for message in messages %}{%- generation -%} {{ message.content }} {%- endgeneration %}{{ unk_token }}{% endfor %}",
    "a line that begins indented": "  {% for message in messages %}\n  x{{ message.content }}\n  {% endfor %}\nend \n",
    "an empty first line": "\n{% for message in messages %}{{ message.content }}{% endfor %}",
    "quotes around text": "{% for message in messages %}\"{{ message.content }}\nand 'more\n'\"{% endfor %}",
    "a macro": "{% macro turn(r, c) %}<{{ r }}>{{ c }}\n{% endmacro %}{% for m in messages %}{{ turn(m.role, m.content) }}{% endfor %}",
}
