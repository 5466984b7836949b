// SPDX-License-Identifier: GPL-2.0-only
// resolve.js NAME...: for each name and type a line, of all at once, by c-ares: the name, the type,
// and the records or the error's code.
const dns = require("dns").promises;

const types = ["A", "AAAA", "TXT"];
const resolver = new dns.Resolver({ timeout: 2000, tries: 2 });

async function line(name, type) {
	try {
		return `${name} ${type} ${JSON.stringify((await resolver.resolve(name, type)).sort())}`;
	} catch (error) {
		return `${name} ${type} ${error.code}`;
	}
}

for (const name of process.argv.slice(2)) {
	for (const type of types) line(name, type).then(console.log);
}
