// Something to start from.

const HOLE = "█"; // where the cursor is put

function withCursor({ name, text }) {
  return { name, text: text.replace(HOLE, ""), cursor: text.indexOf(HOLE) };
}

export const EXAMPLES = {
  completion: [
    {
      name: "A function",
      text: `import os


def newest_file(folder):
    """Return the path of the file in folder that was changed last."""
`,
    },
    {
      name: "A class",
      text: `class Stack:
    """A last-in, first-out stack."""

    def __init__(self):
        self.items = []

    def push(self, item):
`,
    },
    {
      name: "A test",
      text: `def is_palindrome(word):
    word = word.lower()
    return word == word[::-1]


def test_is_palindrome():
`,
    },
  ],
  infilling: [
    {
      name: "A body",
      text: `def remove_non_ascii(text):
    """Return text without the characters that are not ASCII."""
    ${HOLE}
    return result


print(remove_non_ascii("naïve café"))
`,
    },
    {
      name: "A docstring",
      text: `def moving_average(values, width):
    """${HOLE}"""
    total = sum(values[:width])
    averages = [total / width]
    for new, old in zip(values[width:], values):
        total += new - old
        averages.append(total / width)
    return averages
`,
    },
    {
      name: "A condition",
      text: `def binary_search(items, wanted):
    low, high = 0, len(items) - 1
    while low <= high:
        middle = (low + high) // 2
        if ${HOLE}:
            return middle
        if items[middle] < wanted:
            low = middle + 1
        else:
            high = middle - 1
    return None
`,
    },
  ].map(withCursor),
  chat: [
    { name: "Write a function", text: "Write a Python function that merges two sorted lists." },
    { name: "Explain an error", text: "What does “RuntimeError: dictionary changed size during iteration” mean?" },
    { name: "A command", text: "In bash, how do I list all text files below the current folder?" },
  ],
};
