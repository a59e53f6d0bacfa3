#!/usr/bin/env python3
"""Writes the man pages of a command from its own --help: `manpages.py PROGRAM SECTION DIRECTORY`; and that of the config
from its reference: `manpages.py --config FILE DIRECTORY`.

A command of Swift's ArgumentParser describes itself as JSON with --experimental-dump-help; each subcommand gets a page.
"""
import json
import os
import subprocess
import sys

EXIT = "Exit codes:"  # begins the paragraph of --help that says them


def roff(text):
    """Text as roff takes it: no macro by accident, no hyphen that looks like a minus."""
    lines = text.replace("\\", "\\e").replace("-", "\\-").split("\n")
    return "\n".join(("\\&" if line[:1] in ".'" else "") + line for line in lines)


def option(argument):
    """How an option is written, with its value."""
    names = [("-" if name["kind"] == "short" else "--") + name["name"] for name in argument.get("names", [])]
    value = f" \\fI{roff(argument['valueName'])}\\fR" if argument["kind"] == "option" else ""
    return ", ".join(f"\\fB{roff(name)}\\fR" for name in names) + value


def synopsis(command, path):
    parts = [f".B {roff(' '.join(path))}"]
    if command.get("subcommands"):
        return parts[0] + "\n.I subcommand\n.RI [ options ]"
    for argument in shown(command):
        if argument["kind"] == "positional":
            name = "command ..." if argument["isRepeating"] else argument["valueName"]
            parts.append(f".RI [ \"{roff(name)}\" ]" if argument["isOptional"] else f".I {roff(name)}")
        elif argument["names"][0]["name"] not in ("help", "h", "version"):
            parts.append(f"[{option(argument)}]")
    return "\n".join(parts)


def shown(command):
    return [argument for argument in command.get("arguments", []) if argument.get("shouldDisplay", True)]


def page(command, path, section, see):
    name = "-".join(path)
    text = [f'.TH "{name.upper()}" {section} "" "Machnet" "Machnet"', ".SH NAME", f"{roff(name)} \\- {roff(command['abstract'])}",
            ".SH SYNOPSIS", ".nh", ".ad l", synopsis(command, path), ".ad", ".hy"]
    paragraphs = [paragraph.strip() for paragraph in command.get("discussion", "").split("\n\n") if paragraph.strip()]
    codes = [paragraph for paragraph in paragraphs if paragraph.startswith(EXIT)]
    description = [paragraph for paragraph in paragraphs if paragraph not in codes]
    if description:
        text += [".SH DESCRIPTION"]
        for paragraph in description:
            text += [".PP", roff(paragraph)]
    if command.get("subcommands"):
        text += [".SH SUBCOMMANDS"]
        for sub in command["subcommands"]:
            text += [".TP", f"\\fB{roff(sub['commandName'])}\\fR", roff(sub["abstract"])]
    options = [argument for argument in shown(command)]
    if options:
        text += [".SH OPTIONS"]
        for argument in options:
            head = f"\\fI{roff(argument['valueName'])}\\fR" if argument["kind"] == "positional" else option(argument)
            default = f" Default: {argument['defaultValue']}." if argument.get("defaultValue") else ""
            text += [".TP", head, roff(argument.get("abstract", "") + default)]
    if codes:
        text += [".SH EXIT STATUS"]
        for paragraph in codes:
            said = paragraph[len(EXIT):].strip()
            text += [".PP", roff(said[:1].upper() + said[1:])]
    text += [".SH SEE ALSO", ",\n".join(f".BR {roff(other)} ({number})" for other, number in see if other != name).replace(",\n", " ,\n")]
    return "\n".join(text) + "\n"


def config_page(reference):
    with open(reference) as file:
        text = file.read()
    return "\n".join(['.TH "MACHNETD.YAML" 5 "" "Machnet" "Machnet"', ".SH NAME", "machnetd.yaml \\- the config of machnetd", ".SH DESCRIPTION",
                      ".in 0", ".nf", roff(text.rstrip()), ".fi", ".in", ".SH SEE ALSO", ".BR machnetd (8),", ".BR machnet (1)"]) + "\n"


def main():
    if sys.argv[1] == "--config":
        os.makedirs(sys.argv[3], exist_ok=True)
        with open(os.path.join(sys.argv[3], "machnetd.yaml.5"), "w") as file:
            file.write(config_page(sys.argv[2]))
        return
    program, section, directory = sys.argv[1:]
    dump = subprocess.run([program, "--experimental-dump-help"], capture_output=True, text=True, check=True)
    command = json.loads(dump.stdout)["command"]
    name = command["commandName"]
    subs = [sub for sub in command.get("subcommands", []) if sub["commandName"] != "help"]
    command["subcommands"] = subs
    pages = [("machnet", 1), ("machnetd", 8), ("machnetd.yaml", 5)] + [(f"{name}-{sub['commandName']}", section) for sub in subs]
    os.makedirs(directory, exist_ok=True)
    for entry, path in [(command, [name])] + [(sub, [name, sub["commandName"]]) for sub in subs]:
        with open(os.path.join(directory, f"{'-'.join(path)}.{section}"), "w") as file:
            file.write(page(entry, path, section, pages))


if __name__ == "__main__":
    main()
