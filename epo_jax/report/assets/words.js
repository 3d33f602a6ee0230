// Which words of two texts differ: the longest common subsequence of words.

const LONGEST = 1500; // words of a text that are compared; longer texts are compared as a whole

function splitWords(text) { return text.match(/\s+|[^\s]+/gu) || []; }

// Returns for both texts a list of [part, whether it is missing in the other text].
function compareWords(a, b) {
  const left = splitWords(a), right = splitWords(b);
  if (a === b) return [[[a, false]], [[b, false]]];
  if (left.length > LONGEST || right.length > LONGEST) return [[[a, true]], [[b, true]]];
  const common = Array.from({length: left.length + 1}, () => new Uint16Array(right.length + 1));
  for (let i = left.length - 1; i >= 0; i -= 1) {
    for (let j = right.length - 1; j >= 0; j -= 1) {
      common[i][j] = left[i] === right[j] ? common[i + 1][j + 1] + 1 : Math.max(common[i + 1][j], common[i][j + 1]);
    }
  }
  const found = [[], []];
  const add = (side, part, differs) => {
    const last = found[side][found[side].length - 1];
    if (last && last[1] === differs) last[0] += part;
    else found[side].push([part, differs]);
  };
  let i = 0, j = 0;
  while (i < left.length || j < right.length) {
    if (i < left.length && j < right.length && left[i] === right[j]) {
      add(0, left[i], false);
      add(1, right[j], false);
      i += 1;
      j += 1;
    } else if (j === right.length || (i < left.length && common[i + 1][j] >= common[i][j + 1])) {
      add(0, left[i], true);
      i += 1;
    } else {
      add(1, right[j], true);
      j += 1;
    }
  }
  return found;
}
