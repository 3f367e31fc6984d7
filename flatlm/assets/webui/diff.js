// Where two texts part, and which words differ.

/** Words with the white space before them; joined they are the text. */
export const words = (text) => text.match(/\s*\S+|\s+$/g) ?? [];

/** How many words two lists begin with alike. */
export function alike(left, right) {
  let count = 0;
  while (count < left.length && count < right.length && left[count] === right[count]) count += 1;
  return count;
}

/** For each word of both lists: is it in a longest common subsequence? Words are compared without white space. */
export function common(left, right) {
  const [a, b] = [left, right].map((list) => list.map((word) => word.trim()));
  const width = b.length + 1;
  const longest = new Uint32Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      const next = (i + 1) * width + j;
      longest[i * width + j] = a[i] === b[j] ? longest[next + 1] + 1 : Math.max(longest[next], longest[i * width + j + 1]);
    }
  }
  const kept = [a.map(() => false), b.map(() => false)];
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    if (a[i] === b[j]) (kept[0][i++] = true), (kept[1][j++] = true);
    else if (longest[(i + 1) * width + j] >= longest[i * width + j + 1]) i += 1;
    else j += 1;
  }
  return kept;
}
