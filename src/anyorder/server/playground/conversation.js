// A conversation is a tree: an edit or a new answer is a branch beside the old one.

export class Conversation {
  constructor(saved) {
    this.root = saved?.root ?? { role: "root", children: [], chosen: 0 };
  }

  /** The messages from the first to the last of the chosen branches. */
  path() {
    const found = [];
    let node = this.root;
    while (node.children.length) {
      node = node.children[node.chosen];
      found.push(node);
    }
    return found;
  }

  parent(node, from = this.root) {
    if (from.children.includes(node)) return from;
    for (const child of from.children) {
      const found = this.parent(node, child);
      if (found) return found;
    }
    return null;
  }

  /** A new last child of `parent`, and its branch the chosen one. */
  add(parent, role, content) {
    const node = { role, content, children: [], chosen: 0 };
    parent.children.push(node);
    parent.chosen = parent.children.length - 1;
    return node;
  }

  last() {
    return this.path().at(-1) ?? this.root;
  }

  /** What the server is asked with: the messages before and at `node`. */
  messagesTo(node) {
    const path = this.path();
    return path.slice(0, path.indexOf(node) + 1).map(({ role, content }) => ({ role, content }));
  }
}
